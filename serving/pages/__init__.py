"""Server-rendered pages: sign-in, worklist, patient, beds, model health."""
