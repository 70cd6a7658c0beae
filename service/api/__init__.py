"""HTTP only: routes, schemas, negotiation and caching, auth, problem details.  Must not touch torch, numpy or Pillow."""
