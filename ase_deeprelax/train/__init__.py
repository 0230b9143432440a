"""Training of models. Needs the extra ``train``; nothing else imports it."""
