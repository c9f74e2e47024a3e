"""Images on the disk, one kind of storage per file, behind `fastlocal.data.types.StoredImages`."""
