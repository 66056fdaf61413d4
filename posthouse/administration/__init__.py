"""The administration job: everything that is configured is saved, shown, compared and restored here.

Each method asks the actor for permission, changes the store in one transaction, and has the change in force on this
node when it returns. Inside the transaction the directory is read as that transaction sees it, the rules of
`model/consistency.py` are asked, the objects and the audit entries are written, and the directory is built once more
from what was written: what could not be read back is not saved. A tenant's actor meets `NotFound` for everything
outside of the tenant.

It does not decide where mail goes (`model/routing.py`), nor what becomes of mail whose server is gone (`delivery.py`):
it says how many recipients wait.
"""

from posthouse.administration.job import Administration, ApplicationKeys, Deletion, Page, VersionInfo

__all__ = ["Administration", "ApplicationKeys", "Deletion", "Page", "VersionInfo"]
