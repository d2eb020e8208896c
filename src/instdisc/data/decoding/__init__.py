"""From encoded bytes to RGB pixels, and what a file is by its first bytes."""
