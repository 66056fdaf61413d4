"""Added certificates: the verbs of every noun."""

from posthouse.api.nouns import Noun, noun_router

NOUN = Noun(
    word="certificate",
    collection="certificates",
    component="Certificate",
    # No PEM here: an example must be true, and a certificate runs out.
    example=None,
)

router = noun_router(NOUN)
