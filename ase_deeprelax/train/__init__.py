"""Training of models, which needs the extra ``train``, and labels, which do not."""
