"""Ray: lanes that hold a base and train, a broker between them and Ray Tune, and the driver of a search."""
