/**
 * A `TaskStore` of the official MCP TypeScript SDK (1.x, protocol 2025-11-25) on tasktrail's HTTP API: see ../http.md.
 * Types come from `tasktrail.d.ts`, made by openapi-typescript from tasktrail's own document.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import type { CreateTaskOptions, TaskStore } from "@modelcontextprotocol/sdk/experimental/tasks/interfaces.js";
import { McpError, type Request as Rpc, type RequestId, type Result, type Task } from "@modelcontextprotocol/sdk/types.js";
import createClient from "openapi-fetch";
import type { components, paths } from "./tasktrail.d.ts";

type Schemas = components["schemas"];

export class TasktrailStore implements TaskStore {
  /** Who calls: run each request's handling in it, with `{ token: authInfo.token }`, say. */
  readonly caller = new AsyncLocalStorage<Schemas["Caller"]>();
  #api;
  #refs = new Map<string, string>();

  constructor(url: string, token: string, server: string) {
    const headers = { Authorization: `Bearer ${token}`, "Tasktrail-Server": server };
    this.#api = createClient<paths>({ baseUrl: url, headers, fetch: patiently });
  }

  async createTask(wanted: CreateTaskOptions, id: RequestId, request: Rpc): Promise<Task> {
    const { name, arguments: args } = request.params as { name: string; arguments?: unknown };
    const body = { ...this.#asked("tools/call"), tool: name, arguments: args, task_support: "required" as const, ttl_ms: wanted.ttl };
    const made = taken(await this.#api.POST("/ingest/v1/tasks", { params: key(), body }));
    this.#refs.set(made.task_id, made.task_ref);
    return task(made);
  }

  async getTask(taskId: string): Promise<Task | null> {
    const view = await this.#view(taskId, "tasks/get", true);
    return view && task(view);
  }

  async getTaskResult(taskId: string): Promise<Result> {
    const view = await this.#view(taskId, "tasks/result");
    if (view?.error) throw new McpError(view.error.code, view.error.message, view.error.data);
    return (view?.result ?? {}) as Result;
  }

  async listTasks(cursor?: string) {
    const body = { ...this.#asked("tasks/list"), cursor };
    const page = taken(await this.#api.POST("/ingest/v1/tasks/list", { body }));
    return { tasks: (page.tasks ?? []).map(task), nextCursor: page.next_cursor || undefined };
  }

  async storeTaskResult(taskId: string, status: "completed" | "failed", result: Result) {
    const body = { result, is_error: status === "failed" };
    taken(await this.#api.POST("/ingest/v1/work/{ref}/complete", { params: await this.#work(taskId), body }));
  }

  async updateTaskStatus(taskId: string, status: Task["status"], message = "") {
    if (status !== "cancelled") {
      taken(await this.#api.POST("/ingest/v1/work/{ref}/report", { params: await this.#work(taskId), body: { message } }));
      return;
    }
    const params = await this.#work(taskId);
    taken(await this.#api.POST("/ingest/v1/tasks/cancel", { params: key(), body: { ...this.#asked("tasks/cancel"), task_id: taskId } }));
    taken(await this.#api.POST("/ingest/v1/work/{ref}/stop", { params, body: {} }));
  }

  /** Aborted once the task is cancelled, by whomever and wherever, or has ended without its work. */
  unwanted(taskId: string): AbortSignal {
    const told = new AbortController();
    void (async () => {
      for (let after = 0; ; ) {
        const { path } = await this.#work(taskId);
        const seen = taken(await this.#api.GET("/ingest/v1/work/{ref}", { params: { path, query: { after, wait: 30 } } }));
        if (seen.cancel_requested || !seen.live) return told.abort();
        after = seen.seq;
      }
    })().catch((error: unknown) => told.abort(error));
    return told.signal;
  }

  async #view(taskId: string, method: string, status_only = false): Promise<Schemas["TaskView"] | null> {
    const body = { ...this.#asked(method), task_id: taskId, status_only };
    const answer = await this.#api.POST("/ingest/v1/tasks/get", { body });
    return answer.response.status === 404 ? null : taken(answer);
  }

  async #work(taskId: string) {
    const ref = this.#refs.get(taskId) ?? (await this.#view(taskId, "tasks/get", true))?.task_ref ?? "";
    return { path: { ref }, ...key() };
  }

  #asked(method: string) {
    return { caller: this.caller.getStore() ?? {}, call: { method, wire: "2025-11-25" } };
  }
}

const key = () => ({ header: { "Idempotency-Key": `"${randomUUID()}"` } });

const task = (view: Schemas["TaskView"]): Task => ({
  taskId: view.task_id,
  status: view.is_error ? "failed" : view.status,
  statusMessage: view.status_message ?? undefined,
  createdAt: new Date(view.created_at_ms).toISOString(),
  lastUpdatedAt: new Date(view.last_updated_at_ms).toISOString(),
  ttl: view.ttl_ms,
  pollInterval: view.poll_interval_ms,
});

/** What was answered, or the refusal as the client is to see it. */
function taken<T>({ data, error }: { data?: T; error?: Schemas["Refusal"] }): T {
  if (error) throw new McpError(error.code, error.detail, { retriable: error.retriable });
  return data as T;
}

/** The same request again, with the same key, while the trail does not answer. */
async function patiently(request: Request): Promise<Response> {
  for (let tries = 1; ; tries++) {
    const response = await fetch(request.clone());
    if (![503, 504].includes(response.status) || tries === 9) return response;
    await pause(1000 * Number(response.headers.get("Retry-After") ?? 1));
  }
}
