"""Long polling for Flask and SQLAlchemy: a row that commits becomes a response that ends."""
