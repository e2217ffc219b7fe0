-- How much is in the store.
SELECT
    (SELECT count(*) FROM entries) AS entries,
    (SELECT count(*) FROM events) AS events,
    (SELECT count(*) FROM tasks) AS tasks,
    (SELECT count(*) FROM live_tasks) AS live_tasks,
    (SELECT coalesce(sum(times), 0) FROM events WHERE type = 'AccessDenied') AS denials,
    (SELECT count(*) FROM rejected) AS rejected;
