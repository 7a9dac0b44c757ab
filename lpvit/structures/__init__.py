"""Structures: what compression leaves of a weight matrix, one folder each."""
