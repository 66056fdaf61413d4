"""Tenants: the verbs of every noun."""

from posthouse.api.nouns import Noun, noun_router

NOUN = Noun(
    word="tenant", collection="tenants", component="Tenant", example={"name": "Harbour Office"}, has_owner=False
)

router = noun_router(NOUN)
