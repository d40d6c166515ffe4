"""Long work cut into pieces that hang on no other: done in this process, or by many workers, to the same bytes."""
