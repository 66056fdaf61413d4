"""`posthouse certificate`: added certificates of authorities and servers."""

from posthouse.cli.nouns import Noun, add_verbs, owner_name
from posthouse.cli.output import Cell
from posthouse.cli.place import Group
from posthouse.model.certificate import Certificate

NOUN = Noun(
    word="certificate",
    collection="certificates",
    models=(Certificate,),
    headings=("NAME", "OWNER", "COUNTS FOR", "ID"),
    cells=lambda item: (
        item["name"],
        owner_name(item),
        "all servers" if item["for_all_servers"] else "servers that name it",
        Cell(item["id"], "quiet"),
    ),
)

certificate = Group(
    "certificate", help="Certificates that servers are checked against, beside the system's.", no_args_is_help=True
)
add_verbs(certificate, NOUN)
