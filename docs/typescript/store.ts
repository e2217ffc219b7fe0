/**
 * A `TaskStore` of the official MCP TypeScript SDK (1.x, protocol 2025-11-25) on tasktrail's HTTP API, see
 * ../typescript.md. Types come from `tasktrail.d.ts`, made by openapi-typescript from tasktrail's own document.
 *
 * One lease stands for all tasks that this process works on, and is renewed while there are any. When the process is
 * lost they fail, or are begun again by another, as `tools` says. Work that nobody wants any more (cancelled, expired,
 * revoked, lost) has its signal aborted; what it still says is said for its own attempt, and refused.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import type { CreateTaskOptions, TaskStore } from "@modelcontextprotocol/sdk/experimental/tasks/interfaces.js";
import type { RequestTaskStore } from "@modelcontextprotocol/sdk/shared/protocol.js";
import { ErrorCode, McpError } from "@modelcontextprotocol/sdk/types.js";
import type { CallToolResult, Request as Rpc, RequestId, Result, Task } from "@modelcontextprotocol/sdk/types.js";
import createClient from "openapi-fetch";
import type { components, paths } from "./tasktrail.d.ts";

type Schemas = components["schemas"];
type Answer<T> = { data?: T; error?: Schemas["Refusal"]; response: Response };

/** Asks the task's client something (`elicitation/create`, say), who answers at tasktrail's own endpoint. */
export type Ask = (method: string, params: unknown) => Promise<unknown>;

export interface Tool {
  /** As the tool is registered. */
  taskSupport?: "optional" | "required";
  /** Does the work again in another process when its own was lost; without it the task fails. */
  rerun?: (args: never, unwanted: AbortSignal, ask: Ask) => Promise<CallToolResult>;
}

/** The work on a task: at most until its time is over. */
interface Work {
  ref: string;
  attempt: number;
  until: number;
  stop: AbortController;
  ending?: boolean;
}

export class TasktrailStore implements TaskStore {
  /** Who calls: run each request's handling in it, with `{ token: authInfo.token }`, say. */
  readonly caller = new AsyncLocalStorage<Schemas["Caller"]>();
  readonly #worker = randomUUID();
  readonly #works = new Map<string, Work>();
  readonly #begun = new Map<string, Work>();
  readonly #closed = new AbortController();
  readonly #tools: Record<string, Tool>;
  readonly #api;
  #awake?: AbortController;
  #lease_ms?: number;

  constructor(url: string, token: string, server: string, tools: Record<string, Tool> = {}) {
    const headers = { Authorization: `Bearer ${token}`, "Tasktrail-Server": server };
    this.#api = createClient<paths>({ baseUrl: url, headers, fetch: patiently });
    this.#tools = tools;
    if (Object.values(tools).some((tool) => tool.rerun)) void this.#take();
  }

  /** This process is going away: its tasks need not wait for the end of its lease. */
  async close(): Promise<void> {
    this.#closed.abort();
    const works = [...this.#works.values()];
    for (const work of works) this.#forget(work);
    const said = { cause: "shutdown", worker: this.#worker };
    await Promise.allSettled(
      works.map(({ ref, attempt }) =>
        this.#api.POST("/ingest/v1/work/{ref}/lose", {
          params: { path: { ref }, ...key() },
          body: { ...said, attempt },
        }),
      ),
    );
  }

  async createTask(wanted: CreateTaskOptions, id: RequestId, request: Rpc): Promise<Task> {
    const { name, arguments: args } = request.params as { name: string; arguments?: unknown };
    const { taskSupport = "required", rerun } = this.#tools[name] ?? {};
    const made = taken(
      await this.#api.POST("/ingest/v1/tasks", {
        params: key(),
        body: {
          ...this.#asked("tools/call", id),
          tool: name,
          arguments: args,
          task_support: taskSupport,
          ttl_ms: wanted.ttl,
          poll_interval_ms: wanted.pollInterval,
          on_worker_lost: rerun ? "rerun" : "fail",
          worker: this.#worker,
        },
      }),
    );
    const work = this.#begin(made.task_ref, FIRST, made.created_at_ms + made.ttl_ms);
    if (work) this.#begun.set(made.task_id, work);
    return task(made);
  }

  async getTask(taskId: string): Promise<Task | null> {
    const view = await this.#view(taskId, "tasks/get", true);
    return view && task(view);
  }

  async getTaskResult(taskId: string): Promise<Result> {
    const view = await this.#view(taskId, "tasks/result");
    if (!view) throw new McpError(ErrorCode.InvalidParams, "Task not found");
    if (view.status === "cancelled") throw new McpError(0, "Request cancelled");
    if (view.error) throw new McpError(view.error.code, view.error.message, view.error.data);
    return view.result as Result;
  }

  async listTasks(cursor?: string) {
    const body = { ...this.#asked("tasks/list"), cursor };
    const page = taken(await this.#api.POST("/ingest/v1/tasks/list", { body }));
    return { tasks: (page.tasks ?? []).map(task), nextCursor: page.next_cursor || undefined };
  }

  async storeTaskResult(taskId: string, status: "completed" | "failed", result: Result): Promise<void> {
    await this.#complete(await this.#work(taskId), result, status);
  }

  async updateTaskStatus(taskId: string, status: Task["status"], message?: string): Promise<void> {
    if (status === "completed") return this.storeTaskResult(taskId, status, { content: [] });
    if (status === "cancelled") return this.#cancel(taskId);
    const work = await this.#work(taskId);
    if (status === "failed") {
      const error = { code: ErrorCode.InternalError, message: message ?? "the work failed" };
      await this.#end(work, (params, by) =>
        this.#api.POST("/ingest/v1/work/{ref}/fail", { params, body: { ...by, error } }),
      );
    } else if (message) {
      const body = { worker: this.#worker, attempt: work.attempt, message };
      taken(
        await this.#api.POST("/ingest/v1/work/{ref}/report", { params: { path: { ref: work.ref }, ...key() }, body }),
      );
    }
  }

  /**
   * Does the work on a task that this process created, and stores what it comes to: with the request's own task store,
   * so that its client is told. Its signal is aborted once nobody wants it any more, whoever decided that.
   */
  async run(taskId: string, does: Does, into: Storing = this): Promise<void> {
    const work = this.#begun.get(taskId);
    if (work) await this.#do(work, does, (result, status) => into.storeTaskResult(taskId, status, result));
  }

  /** Has a task cancelled, and waits until its process said that it stopped. */
  async #cancel(taskId: string): Promise<void> {
    const work = await this.#work(taskId);
    const body = { ...this.#asked("tasks/cancel"), task_id: taskId };
    taken(await this.#api.POST("/ingest/v1/tasks/cancel", { params: key(), body }));
    const own = this.#works.get(work.ref);
    if (own) await this.#look(own);
    const path = { ref: work.ref };
    for (let after = 0, end = Date.now() + 15_000; ;) {
      const query = { after, wait: 5 };
      const seen = taken(await this.#api.GET("/ingest/v1/work/{ref}", { params: { path, query } }));
      if (!seen.live) return;
      if (Date.now() > end) throw new McpError(ErrorCode.InternalError, "the task was told to stop and has not yet");
      after = seen.seq;
    }
  }

  /** Work that this process does from now on; an earlier attempt at it here was lost. None when this one was. */
  #begin(ref: string, attempt: number, until: number): Work | undefined {
    const other = this.#works.get(ref);
    if (other && other.attempt > attempt) return undefined;
    if (other) this.#forget(other);
    const work = { ref, attempt, until, stop: new AbortController() };
    this.#works.set(ref, work);
    if (!this.#awake) {
      this.#awake = new AbortController();
      void this.#renew(this.#awake.signal);
      void this.#watch(this.#awake.signal);
      void this.#listen(this.#awake.signal);
    }
    return work;
  }

  /** The work is over, or no longer this process's. False when that was known. */
  #forget(work: Work): boolean {
    if (this.#works.get(work.ref) !== work) return false;
    this.#works.delete(work.ref);
    for (const [id, begun] of this.#begun) if (begun === work) this.#begun.delete(id);
    work.stop.abort();
    if (this.#works.size === 0) {
      this.#awake?.abort();
      this.#awake = undefined;
    }
    return true;
  }

  /** Stops the work unless it is still wanted, and says that it stopped where it was told to. */
  async #look(work: Work): Promise<void> {
    const query = { worker: this.#worker, attempt: work.attempt };
    const answer = await this.#api.GET("/ingest/v1/work/{ref}", { params: { path: { ref: work.ref }, query } });
    const seen = answer.response.status === 404 ? undefined : taken(answer);
    const mine = seen?.live && !seen.lost;
    if (work.ending || (mine && !seen.cancel_requested) || !this.#forget(work) || !mine) return;
    await this.#end(work, (params, body) => this.#api.POST("/ingest/v1/work/{ref}/stop", { params, body }));
  }

  async #complete(work: Work, result: Result, status: "completed" | "failed"): Promise<void> {
    await this.#end(work, (params, by) =>
      this.#api.POST("/ingest/v1/work/{ref}/complete", {
        params,
        body: { ...by, result, is_error: status === "failed" },
      }),
    );
  }

  /** Says how the work ended, until the trail has it or the task's time is over. */
  async #end(work: Work, say: (params: Named, by: By) => Promise<Answer<Schemas["WorkView"]>>): Promise<void> {
    const params = { path: { ref: work.ref }, ...key() };
    const by = { worker: this.#worker, attempt: work.attempt };
    work.ending = true;
    try {
      for (;;) {
        const answer = await say(params, by).catch((error: Error) => error);
        const unheard = answer instanceof Error;
        if ((!unheard && !answer.error?.retriable) || Date.now() > work.until) {
          if (unheard) throw answer;
          const { outcome, reason } = taken(answer);
          if (outcome === "refused")
            throw new McpError(ErrorCode.InvalidRequest, `the task does not take this: ${reason}`);
          return;
        }
        await pause(1000);
      }
    } finally {
      this.#forget(work);
    }
  }

  /**
   * Keeps this process's lease while it works. A third of the lease after the last renewal comes the next; one that is
   * not answered within a sixth has failed, and is soon followed by another: one or two may get lost.
   */
  async #renew(awake: AbortSignal): Promise<void> {
    for (let why = ""; !awake.aborted; ) {
      const lease_ms = this.#lease_ms ?? 30_000;
      let next = Math.min(1000, lease_ms / 12);
      try {
        const signal = AbortSignal.any([awake, AbortSignal.timeout(Math.ceil(lease_ms / 6))]);
        const body = { worker: this.#worker };
        this.#lease_ms = taken(await this.#api.POST("/ingest/v1/workers/renew", { body, signal, fetch })).lease_ms;
        next = this.#lease_ms / 3;
        why = "";
      } catch (error) {
        if (`${error}` !== why && !awake.aborted) console.error(`tasktrail: the lease was not renewed: ${error}`);
        why = `${error}`;
      }
      await rest(next, awake);
    }
  }

  /** Looks at this process's tasks from time to time, since a move may not be heard. */
  async #watch(awake: AbortSignal): Promise<void> {
    for (; !awake.aborted; await rest((this.#lease_ms ?? 3000) / 3, awake))
      for (const work of this.#works.values())
        await this.#look(work).catch((error) => console.error(`tasktrail: ${error}`));
  }

  /** Looks at a task of this process's as soon as somebody moved it. */
  async #listen(awake: AbortSignal): Promise<void> {
    for (; !awake.aborted; await rest(1000, awake)) {
      try {
        const stream = await this.#api.GET("/ingest/v1/moves", { parseAs: "stream", signal: awake });
        let text = "";
        for await (const part of taken(stream)!.pipeThrough(new TextDecoderStream())) {
          const lines = (text + part).split("\n");
          text = lines.pop()!;
          for (const line of lines.filter((one) => one.startsWith("data: "))) {
            const work = this.#works.get(JSON.parse(line.slice(6)).task_ref);
            if (work) await this.#look(work);
          }
        }
      } catch (error) {
        if (!awake.aborted) console.error(`tasktrail: ${error}`);
      }
    }
  }

  /** Takes work whose process was lost, as long as this one lives. */
  async #take(): Promise<void> {
    const tools = Object.fromEntries(
      Object.entries(this.#tools).flatMap(([name, { rerun }]) => (rerun ? [[name, ""]] : [])),
    );
    while (!this.#closed.signal.aborted) {
      const before = [...this.#works.values()].filter((work) => work.attempt > 1);
      const body = {
        worker: this.#worker,
        tools,
        taken: Object.fromEntries(before.map((work) => [work.ref, work.attempt])),
        wait_ms: 1000,
      };
      try {
        const { order } = taken(await this.#api.POST("/ingest/v1/workers/take", { body }));
        if (order && !this.#closed.signal.aborted) void this.#again(order);
      } catch (error) {
        console.error(`tasktrail: ${error}`);
        await pause(1000);
      }
    }
  }

  async #again({ task_ref, attempt, created_at_ms, ttl_ms, tool, arguments: args }: Schemas["Order"]): Promise<void> {
    const work = this.#begin(task_ref, attempt, created_at_ms + ttl_ms);
    const rerun = this.#tools[tool]?.rerun;
    if (work && rerun)
      await this.#do(work, (unwanted, ask) => rerun(args as never, unwanted, ask), this.#complete.bind(this, work));
  }

  async #do(work: Work, does: Does, store: Stores): Promise<void> {
    let result: CallToolResult;
    try {
      result = await does(work.stop.signal, this.#ask.bind(this, work));
    } catch (error) {
      if (work.stop.signal.aborted) return;
      result = { content: [{ type: "text", text: `${error}` }], isError: true };
    }
    const unwanted = work.stop.signal.aborted;
    if (unwanted && work.ending) return; // it said that it stopped
    const say: Stores = unwanted ? this.#complete.bind(this, work) : store;
    await say(result, result.isError ? "failed" : "completed").catch((error) => console.error(`tasktrail: ${error}`));
  }

  async #ask(work: Work, method: string, params: unknown): Promise<unknown> {
    const path = { ref: work.ref };
    const by = { worker: this.#worker, attempt: work.attempt };
    const name = `${method.split("/")[0]}-${randomUUID()}`;
    const body = { ...by, asks: { [name]: { method, params } } };
    let seen = taken(await this.#api.POST("/ingest/v1/work/{ref}/ask", { params: { path, ...key() }, body }));
    if (seen.outcome === "refused")
      throw new McpError(ErrorCode.InvalidRequest, `the task does not ask: ${seen.reason}`);
    while (!work.stop.signal.aborted) {
      if (name in (seen.answers ?? {})) return seen.answers![name];
      const query = { ...by, after: seen.seq, wait: 15 };
      seen = taken(await this.#api.GET("/ingest/v1/work/{ref}", { params: { path, query } }));
    }
    throw new McpError(ErrorCode.InvalidRequest, "nobody wants the answer any more");
  }

  async #view(taskId: string, method: string, status_only = false): Promise<Schemas["TaskView"] | null> {
    const body = { ...this.#asked(method), task_id: taskId, status_only };
    const answer = await this.#api.POST("/ingest/v1/tasks/get", { body });
    return answer.response.status === 404 ? null : taken(answer);
  }

  /**
   * The work on a task. Of another process's, or another attempt's, may be read here, and what is said for it is
   * refused: whoever knows a task by its id can only have begun it first.
   */
  async #work(taskId: string): Promise<Work> {
    const own = this.#begun.get(taskId);
    if (own) return own;
    const view = await this.#view(taskId, "tasks/get", true);
    if (!view) throw new McpError(ErrorCode.InvalidParams, "Task not found");
    return { ref: view.task_ref, attempt: FIRST, until: view.created_at_ms + view.ttl_ms, stop: new AbortController() };
  }

  #asked(method: string, id?: RequestId) {
    const call = {
      method,
      wire: "mcp/2025-11-25",
      protocol_version: "2025-11-25",
      rpc_id: typeof id === "number" ? `${id}` : undefined,
    };
    return { caller: this.caller.getStore() ?? {}, call };
  }
}

type Does = (unwanted: AbortSignal, ask: Ask) => Promise<CallToolResult>;
type Storing = Pick<RequestTaskStore, "storeTaskResult">;
type Stores = (result: CallToolResult, status: "completed" | "failed") => Promise<void>;
type By = { worker: string; attempt: number };
type Named = { path: { ref: string } } & ReturnType<typeof key>;
/** The attempt of the process that created the task; 0 would be any of a process's. */
const FIRST = 1;
const key = () => ({ header: { "Idempotency-Key": `"${randomUUID()}"` } });

const rest = (ms: number, awake: AbortSignal) => pause(ms, null, { ref: false, signal: awake }).catch(() => {});

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

/** The same request again, with the same key, while tasktrail or its trail does not answer: for some ten seconds. */
async function patiently(request: Request): Promise<Response> {
  for (let tries = 1; ; tries++) {
    const soon = request.url.endsWith("/moves")
      ? request.signal
      : AbortSignal.any([request.signal, AbortSignal.timeout(20_000)]);
    const answer = await fetch(request.clone(), { signal: soon }).catch((error: Error) => error);
    const again = answer instanceof Error ? !request.signal.aborted : [503, 504].includes(answer.status);
    if (again && tries < 10)
      await pause(1000 * (answer instanceof Error ? 1 : Number(answer.headers.get("Retry-After") ?? 1)));
    else if (answer instanceof Error) throw answer;
    else return answer;
  }
}
