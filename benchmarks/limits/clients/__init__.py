"""How each client makes many calls under limits: one module per client."""
