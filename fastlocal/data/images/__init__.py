"""Images left where they are stored, one kind of storage a file, as `fastlocal.data.types.StoredImages` says."""
