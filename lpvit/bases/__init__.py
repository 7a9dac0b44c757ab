"""Aligned bases: the same model in other weights, so that few blocks matter; one file per freedom."""
