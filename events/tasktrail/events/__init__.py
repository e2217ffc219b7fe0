"""The pure core: facts, commands, decisions, entries.

Guarantees: nothing here reads a clock, draws randomness or does I/O; it needs the standard library and msgspec only.
An import contract checks it.

    task = replay(events)
    events = decide(command, task)
    for event in events:
        task = evolve(task, event)
"""
