"""The model told to others: 3D Tiles, vector tiles, CityJSON, GeoJSON, CSV. Values in, bytes out,
the same each time."""
