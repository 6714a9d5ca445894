"""Several processes: who computes which SVD, what they tell and send each other, how their wrapper is kept right."""
