"""The last transformer block, for the tokens that the head reads."""
