"""The service as the client sees it: where it is, its API, and what it says of a running job."""
