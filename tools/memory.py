"""How much memory this process takes that no file backs; mapped weights are not counted, since they can be dropped."""
import math
import re
import threading
from pathlib import Path


def anonymous_memory():
    """Bytes of this process that no file backs, or None where the system does not count them (Linux does)."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8") if status.exists() else "")
    return 1024 * int(found[1]) if found else None


def memory_during(function):
    """Run `function()`; the bytes of anonymous memory that this process had before it, and at most while it ran.

    Both are nan where the system does not count them.
    """
    seen, done = [anonymous_memory()], threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.append(anonymous_memory())

    threading.Thread(target=watch, daemon=True).start()
    function()
    done.set()
    return (seen[0], max(seen)) if seen[0] else (math.nan, math.nan)
