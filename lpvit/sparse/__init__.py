"""Block-sparse inference."""
