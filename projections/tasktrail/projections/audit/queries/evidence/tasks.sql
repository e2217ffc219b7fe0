-- Those of these tasks that were created by then.
SELECT tenant, task_ref
FROM tasks
WHERE first_seq <= $size AND task_ref IN (SELECT unnest($refs::VARCHAR[]))
ORDER BY first_seq
