"""`posthouse tenant`: the organisations that this installation serves."""

from posthouse.cli.nouns import Noun, add_verbs
from posthouse.cli.output import Cell, plain
from posthouse.cli.place import Group
from posthouse.model.tenant import Tenant

NOUN = Noun(
    word="tenant",
    collection="tenants",
    models=(Tenant,),
    headings=("NAME", "ENABLED", "NETWORKS", "ID"),
    cells=lambda item: (item["name"], plain(item["enabled"]), plain(item["networks"]), Cell(item["id"], "quiet")),
    has_owner=False,
)

tenant = Group("tenant", help="Tenants: the organisations that this installation serves.", no_args_is_help=True)
add_verbs(tenant, NOUN)
