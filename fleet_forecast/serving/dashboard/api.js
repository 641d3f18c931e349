// Requests to the daemon. Addresses are relative to the page, so that it works below a path prefix.

const TOKEN = "fleet-forecast-token"; // in the session storage of the browser's tab
let unauthorised = () => {};

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const onUnauthorised = (listener) => { unauthorised = listener; };
export const setToken = (token) => sessionStorage.setItem(TOKEN, token);
export const hasToken = () => Boolean(sessionStorage.getItem(TOKEN));
export const server = (name) => `api/v1/servers/${encodeURIComponent(name)}`;

export async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (response.status === 401) unauthorised();
  return response;
}

// The JSON of a response. Throws ApiError with the daemon's reason; other errors mean that it cannot be reached.
export async function ask(path, options) {
  const response = await request(path, options);
  if (response.ok) return response.json();
  let detail = `${path.split("?")[0]}: status ${response.status}`;
  try {
    const reason = (await response.json()).detail;
    detail = typeof reason === "string" ? reason : reason.map((part) => `${part.field}: ${part.reason}`).join("; ");
  } catch { /* the body is not from the daemon */ }
  throw new ApiError(response.status, detail);
}

// The response, or null if the daemon refuses: for what a view can do without.
export async function askOptional(path, options) {
  try {
    return await ask(path, options);
  } catch (problem) {
    if (problem instanceof ApiError && problem.status !== 401) return null;
    throw problem;
  }
}

// All pages of a list. Each response has `next` and the list under `name`; the other fields are those of the first page.
export async function askAll(path, name, options) {
  const first = await ask(path, options);
  for (let next = first.next; next; ) {
    const page = await ask(`${path}${path.includes("?") ? "&" : "?"}after=${encodeURIComponent(next)}`, options);
    first[name].push(...page[name]);
    next = page.next;
  }
  return first;
}
