"""Aligned bases: the same model written down so that few blocks of its matrices matter; each freedom is one file."""
