// Preloaded into Azurite: writes its list of blobs to disk before it acknowledges a change.
//
// Azurite keeps that list in lokijs databases, which save themselves every five seconds. A store
// that is to be killed in tests must not forget what it has answered.
"use strict";

const http = require("http");
const path = require("path");

const Loki = require(require.resolve("lokijs", { paths: [path.dirname(process.argv[1])] }));

// Every database saves itself once before it is used.
const databases = new Set();
const saveDatabase = Loki.prototype.saveDatabase;
Loki.prototype.saveDatabase = function (...parameters) {
  databases.add(this);
  return saveDatabase.apply(this, parameters);
};

// A save under way may be too old to hold the change; asking again then queues another one.
const isUnsaved = (database) => database.throttledSavePending || database.autosaveDirty();
const save = (database) =>
  new Promise((resolve, reject) =>
    database.saveDatabase((error) => (error ? reject(error) : resolve())),
  );

const end = http.ServerResponse.prototype.end;
http.ServerResponse.prototype.end = function (...parameters) {
  const isChange = !["GET", "HEAD"].includes(this.req.method);
  const unsaved = isChange ? [...databases].filter(isUnsaved) : [];
  if (unsaved.length === 0) {
    return end.apply(this, parameters);
  }
  Promise.all(unsaved.map(save)).then(
    () => end.apply(this, parameters),
    (error) => this.destroy(error),
  );
  return this;
};
