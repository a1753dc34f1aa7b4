"""The bed forecast as a page and a file."""
