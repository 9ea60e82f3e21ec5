"""One file per family: its modules, the reference's names beside ours, its variants."""
