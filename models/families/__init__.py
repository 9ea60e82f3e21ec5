"""One file per family: its modules, the key map to the reference's names, its variants."""
