"""How a model comes to be: splits, fitting, evaluation, tracking, promotion."""
