"""Tenants: the verbs of every noun."""

from fastapi import APIRouter

from posthouse.api.nouns import Noun, noun_router

NOUN = Noun(
    word="tenant", collection="tenants", component="Tenant", example={"name": "Harbour Office"}, has_owner=False
)


def make_router() -> APIRouter:
    """The routes of tenants."""
    return noun_router(NOUN)
