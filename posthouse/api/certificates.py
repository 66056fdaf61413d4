"""Added certificates: the verbs of every noun."""

from fastapi import APIRouter

from posthouse.api.nouns import Noun, noun_router

NOUN = Noun(
    word="certificate",
    collection="certificates",
    component="Certificate",
    # No PEM here: an example must be true, and a certificate runs out.
    example=None,
)


def make_router() -> APIRouter:
    """The routes of certificates."""
    return noun_router(NOUN)
