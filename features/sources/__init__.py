"""One module a format. Each turns a hospital's files into encounters and canonical events."""
