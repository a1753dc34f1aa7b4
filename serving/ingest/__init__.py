"""The one way in. Every format ends in the same function."""
