/**
 * Clients of the official TypeScript SDK, each with an MCP server of its own as child process, told what to do by JSON
 * lines on standard input: `{"id", "op", "name", …}` is answered by `{"id", "ok"}` or `{"id", "error": {code, message}}`.
 */
import { createInterface } from "node:readline";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { CallToolResultSchema, CreateTaskResultSchema, type McpError } from "@modelcontextprotocol/sdk/types.js";
import { Between } from "./between.ts";

type Losing = { urls?: string; times?: number };
type Said = { id: number; op: string; name: string; file?: string; quarter?: string; task?: string } & Losing;

const clients = new Map<string, Client>();
const between = new Between();
const env = { ...process.env } as Record<string, string>;

async function open(name: string, file: string): Promise<number | null> {
  const transport = new StdioClientTransport({ command: process.execPath, args: [file], env, stderr: "inherit" });
  const client = new Client({ name, version: "1" });
  await client.connect(transport);
  await client.listTools(); // the SDK's client learns there which tools are tasks
  clients.set(name, client);
  return transport.pid;
}

/** What servers opened from now on ask of tasktrail goes by a way that loses some of it. */
async function lose({ urls, times = Infinity }: Losing): Promise<null> {
  if (env["TASKTRAIL"] === process.env["TASKTRAIL"]) env["TASKTRAIL"] = await between.listen(env["TASKTRAIL"]!);
  between.loss = urls === undefined ? undefined : { urls, times };
  between.passed.length = between.lost.length = 0;
  return null;
}

async function done(said: Said): Promise<unknown> {
  const { op, name, file = "", quarter, task = "" } = said;
  if (op === "open") return open(name, file);
  if (op === "lose") return lose(said);
  if (op === "seen") return { passed: between.passed, lost: between.lost };
  const client = clients.get(name)!;
  const tasks = client.experimental.tasks;
  switch (op) {
    case "call": {
      const params = { name: "report", arguments: { quarter }, task: { ttl: 60_000 } };
      return (await client.request({ method: "tools/call", params }, CreateTaskResultSchema)).task;
    }
    case "get":
      return tasks.getTask(task);
    case "result":
      return tasks.getTaskResult(task, CallToolResultSchema);
    case "cancel":
      return tasks.cancelTask(task);
    case "list":
      return tasks.listTasks();
    default:
      throw new Error(op);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const said = JSON.parse(line) as Said;
  const answer = done(said).then(
    (ok) => ({ ok }),
    ({ code, message }: McpError) => ({ error: { code, message } }),
  );
  void answer.then((told) => console.log(JSON.stringify({ id: said.id, ...told })));
}
await Promise.all([...clients.values()].map((client) => client.close()));
