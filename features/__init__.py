"""Facts about patients in time: events, concepts, sources, windows, census, labels.

Imports no other room. Everything downstream, offline and online, reads features made here.
"""
