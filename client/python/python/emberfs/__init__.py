"""EmberFS for Python: for now the training libraries, ``emberfs.train``."""
