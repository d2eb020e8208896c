"""Files wherever they are: local or at a URL, listed, told apart by their kind, or skipped; what a scan found."""
