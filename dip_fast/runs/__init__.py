"""One run's folder: request, job, fit, result, record."""
