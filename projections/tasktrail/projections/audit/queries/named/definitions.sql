-- How tools were defined, and which tasks saw a definition change.
--
-- One row for each definition of a tool of an MCP server, in the order of the first creations under it; stream_seq, entry_id
-- and leaf_sha256 are those of that creation. before_sha256 is the definition that was new before it; NULL: it is the first.
-- tasks were made under it, the last of them at last_at; live of them are not over; drifted of them lived to see another
-- definition. A server that says no definition is not here.
-- $tool text: its name
-- $server text: the MCP server it is of
-- $changed boolean: only definitions that took the place of another, or only first ones
WITH defined AS MATERIALIZED (
    SELECT
        server,
        tool,
        tool_sha256,
        min(first_seq) AS first_seq,
        max(created_at) AS last_at,
        count(*) AS tasks,
        count(*) FILTER (ended_at IS NULL AND expired_at IS NULL) AS live
    FROM tasks
    WHERE tool_sha256 IS NOT NULL AND first_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND ($tool::VARCHAR IS NULL OR tool = $tool)
        AND ($server::VARCHAR IS NULL OR server = $server)
    GROUP BY ALL
),
one_by_one AS (
    SELECT *, lag(tool_sha256) OVER (PARTITION BY server, tool ORDER BY first_seq) AS before_sha256
    FROM defined
),
drift AS MATERIALIZED (
    SELECT task_ref
    FROM notable
    WHERE type = 'ToolDriftSeen' AND stream_seq <= $as_of AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
),
drifted AS (
    SELECT server, tool, tool_sha256, count(*) AS drifted
    FROM tasks
    WHERE task_ref IN (SELECT task_ref FROM drift)
    GROUP BY ALL
)
SELECT
    o.first_seq AS stream_seq,
    t.created_at AS at_time,
    o.last_at,
    o.server,
    o.tool,
    o.tool_sha256,
    o.before_sha256,
    o.tasks,
    o.live,
    coalesce(d.drifted, 0) AS drifted,
    t.created_by AS entry_id,
    t.created_leaf_sha256 AS leaf_sha256
FROM one_by_one o
JOIN tasks t ON t.first_seq = o.first_seq
LEFT JOIN drifted d ON d.server = o.server AND d.tool = o.tool AND d.tool_sha256 = o.tool_sha256
WHERE o.first_seq > $after
    AND ($changed::BOOLEAN IS NULL OR (o.before_sha256 IS NOT NULL) = $changed)
ORDER BY stream_seq
LIMIT $most;
