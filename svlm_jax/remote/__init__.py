"""Models behind HTTP: asked until they answer, answers kept. Knows neither benchmarks nor curation."""
