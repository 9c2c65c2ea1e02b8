"""Which stores an installation uses, and what may be written to them: decision 0059."""
