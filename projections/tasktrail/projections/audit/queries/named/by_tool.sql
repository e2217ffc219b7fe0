-- The tasks of a tool.
--
-- One row for each task, in the order of their creation; stream_seq, entry_id and leaf_sha256 are those of its creation.
-- $tool text: its name
-- $tool_sha256 text: hex SHA-256 of its definition as it was when the task was created
-- $server text: the MCP server it is of
-- $opens boolean: only tasks whose handle opens them still, or only others
SELECT *
FROM handles
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($tool::VARCHAR IS NULL OR tool = $tool)
    AND ($tool_sha256::VARCHAR IS NULL OR tool_sha256 = $tool_sha256)
    AND ($server::VARCHAR IS NULL OR server = $server)
    AND ($opens::BOOLEAN IS NULL OR opens = $opens)
ORDER BY stream_seq
LIMIT $most;
