/**
 * A proxy to tasktrail that loses requests: it takes them and never answers. Guarantees: what it does not lose passes
 * unchanged, streams included.
 */
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";

export interface Loss {
  /** Which requests are lost: a regular expression for their path and query. */
  urls: string;
  /** How many of them, at most. */
  times: number;
}

export class Between {
  readonly passed: string[] = [];
  readonly lost: string[] = [];
  loss?: Loss;

  /** Listens; gives the URL that stands for the other. */
  async listen(url: string): Promise<string> {
    const { hostname, port, host } = new URL(url);
    const server = createServer((asked, answer) => {
      const path = asked.url!;
      if (this.loss && this.loss.times > 0 && new RegExp(this.loss.urls).test(path)) {
        this.loss.times -= 1;
        this.lost.push(path);
        return;
      }
      this.passed.push(path);
      const { method, headers } = asked;
      const on = request({ hostname, port, path, method, headers: { ...headers, host } }, (got) => {
        answer.writeHead(got.statusCode!, got.headers);
        answer.flushHeaders();
        got.on("error", () => answer.destroy()).pipe(answer);
      });
      on.on("error", () => answer.destroy());
      answer.on("close", () => on.destroy());
      asked.pipe(on);
    });
    server.unref();
    await new Promise<void>((listens) => server.listen(0, "127.0.0.1", listens));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }
}
