"""The experiment: a matrix of methods, densities, sizes and seeds, and what follows from it."""
