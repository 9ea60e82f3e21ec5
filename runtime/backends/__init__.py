"""One file per inference package; `backend` holds the protocol and the registry."""
