/** What was published. `data` is the publisher's, any JSON value. */
export interface LegacyPollEvent<T = any> {
  id: string;
  channel: string;
  type: string;
  data: T;
  /** RFC 3339, UTC. */
  time: string;
}

export type LegacyPollState = "connecting" | "live" | "waiting" | "stale" | "stopped" | "failed";

/** What is known about a state; which keys are there depends on the state. */
export interface LegacyPollDetail {
  reason?: "network" | "timeout" | "status" | "body" | "early" | "rate" | "token" | "resync" | "frozen" | "leader";
  /** Milliseconds until the next request. */
  delay?: number;
  /** HTTP status; 0 if there was none. */
  status?: number;
  /** The server's machine code, or "". */
  code?: string;
  message?: string;
  cursor?: string;
}

export interface LegacyPollOptions {
  /** The blueprint's prefix, or the URL of its /stream. Default: /poll. */
  url?: string;
  /** Names, or one text with commas. Default: what the server names. */
  channels?: string[] | string;
  cursor?: string;
  /** Or a function that fetches one: calls `done`, or without taking it returns the token or a thenable. */
  token?: string | ((done: (token: string | false) => void) => unknown);
  /** Default: "query", which needs no preflight. */
  tokenIn?: "query" | "header";
  /** Longest hold in milliseconds. Default: 25000. */
  timeout?: number;
  heartbeat?: number;
  limit?: number;
  withCredentials?: boolean;
  jsonp?: boolean;
  /** A text says whose poll it is; needed if `token` is a function. Default: true. */
  share?: boolean | string;
  storage?: "session";
  onstate?: (state: LegacyPollState, detail: LegacyPollDetail) => void;
  onerror?: (error: unknown, event?: LegacyPollEvent) => void;
  /** Reload your state, then `done()`; without taking it: return, or return a thenable. `false` means that it failed. */
  onresync?: (code: string, cursor: string, done: (ok?: boolean) => void) => unknown;
}

export interface LegacyPollConnection {
  readonly state: LegacyPollState;
  readonly cursor: string | undefined;
  /** This tab polls; if not, another tab does so for it. */
  readonly leads: boolean;
  onstate: LegacyPollOptions["onstate"];
  onerror: LegacyPollOptions["onerror"];
  onresync: LegacyPollOptions["onresync"];
  on<T = any>(type: string, handler: (this: LegacyPollConnection, event: LegacyPollEvent<T>) => void): this;
  off(type?: string, handler?: (event: LegacyPollEvent) => void): this;
  start(changes?: { token?: LegacyPollOptions["token"]; cursor?: string }): this;
  stop(): this;
}

export function connect(options?: LegacyPollOptions, win?: unknown): LegacyPollConnection;

export as namespace LegacyPoll;
