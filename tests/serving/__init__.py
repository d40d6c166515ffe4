"""Other engines take what moec writes for them: is their text that of moec's own engine? `make serving` runs these."""
